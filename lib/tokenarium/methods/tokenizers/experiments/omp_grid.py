"""OMP in the donor's space, and bits per byte of the base model for every k, and with the rows dealt out at random.

Parts: "setting" (ids), "spelled" (what the new and the shared tokens decode to), "path" (of the longest pursuit in the
input matrix: indices, residuals, coefficients for every k, new rows of the deciding k; "path-out" of the output matrix
where it is another), "omp-<k>" and "permuted-<seed>" (text -> bits of every token), "shared" (how many shared rows
differ from the base's).
"""

from __future__ import annotations

import torch

from tokenarium.methods.tokenizers import omp_transplant, swaplab
from tokenarium.methods.tokenizers.omp_setting import open_setting
from tokenarium.study.experiments import Experiment


def run(experiment: Experiment) -> None:
    p = experiment.parameters
    setting = open_setting(experiment.root, p)
    experiment.arrays("setting", setting.arrays)
    experiment.record(
        "spelled", lambda: {"new": setting.spell(setting.new_ids), "shared": setting.spell(setting.shared[0])}
    )

    def pursuit(number: int) -> dict:
        space = setting.spaces[number]
        paths = [omp_transplant.pursue(part, space.points, max(p.ks)) for part in space.targets.split(p.chunk)]
        found = {"indices": torch.cat([path.indices for path in paths])}
        found["residuals"] = torch.cat([path.residuals() for path in paths])
        for k in p.ks:
            found[f"coefficients-{k}"] = torch.cat([path.coefficients(k) for path in paths])
        indices = found["indices"][:, : p.k]
        found["rows"] = omp_transplant.combine(indices, found[f"coefficients-{p.k}"], space.rows)
        return {name: values.cpu().numpy() for name, values in found.items()}

    names = ["path", "path-out"][: len(setting.spaces)]
    paths = [experiment.arrays(name, lambda number=number: pursuit(number)) for number, name in enumerate(names)]

    def rows(k: int) -> list[torch.Tensor]:
        made = []
        for path, space in zip(paths, setting.spaces, strict=True):
            parts = (path["indices"][:, :k], path[f"coefficients-{k}"])
            made.append(
                omp_transplant.combine(*(torch.from_numpy(part).to(space.rows.device) for part in parts), space.rows)
            )
        return made

    def changed() -> dict[str, int]:
        model = setting.swapped(rows(p.k))
        places = torch.from_numpy(swaplab.renumber(setting.kept, setting.shared[0]))
        held = [model.get_input_embeddings().weight[places], model.get_output_embeddings().weight[places]]
        pairs = zip(held, setting.spaces, strict=False)
        return {"changed": int(sum((one != space.rows).any(dim=1).sum() for one, space in pairs))}

    experiment.record("shared", changed)
    for k in experiment.progress(p.ks, "k"):
        experiment.arrays(f"omp-{k}", lambda k=k: setting.bits(setting.swapped(rows(k))))
    for seed in experiment.progress(experiment.seeds, "permuted rows"):
        dealt = [swaplab.permuted(each, seed) for each in rows(p.k)]
        experiment.arrays(f"permuted-{seed}", lambda dealt=dealt: setting.bits(setting.swapped(dealt)))
