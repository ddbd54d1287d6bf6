"""The explorer as a Jupyter widget; the front end is explorer.js, and Python reads the slices that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
import xarray as xr

from tokenarium.errors import TokenariumError
from tokenarium.study.explorer.catalogue import check_state, describe, part


class Explorer(anywidget.AnyWidget):
    """See `tokenarium.explore`. state: what is shown, followed by the picture and changed by the reader."""

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    catalog = traitlets.Dict().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, runs: Mapping[str, xr.Dataset], pictures: np.ndarray | None, state: Mapping[str, Any]):
        catalog = describe(runs, pictures)
        self._runs = dict(runs)
        super().__init__(catalog=catalog, state=check_state(catalog, state))
        self.on_msg(self._answer)

    @property
    def shown(self) -> xr.DataArray:
        """The part of the tensor that the picture is made of: every slider at its place, nothing reduced."""
        index = {dim: self.state["index"][dim] for dim, role in self.state["roles"].items() if role == "slider"}
        return part(self._runs, self.state["run"], self.state["tensor"], index)

    @traitlets.validate("state")
    def _checked(self, proposal: Any) -> dict[str, Any]:
        return check_state(self.catalog, proposal["value"])

    def _answer(self, _: Any, question: Any, buffers: Any) -> None:
        """Send the slice that the front end asks for, or what is wrong with the question."""
        if not isinstance(question, dict) or not {"id", "run", "tensor", "index"} <= set(question):
            return
        try:
            found = part(self._runs, question["run"], question["tensor"], question["index"])
        except TokenariumError as error:
            self.send({"id": question["id"], "error": str(error)})
            return
        # float32 is enough for a picture of float16 and float32; whole numbers keep all digits in float64.
        small = found.dtype in (np.float16, np.float32)
        values = np.ascontiguousarray(found.values, "<f4" if small else "<f8")
        answer = {"id": question["id"], "shape": list(values.shape), "dims": list(found.dims)}
        self.send(answer | {"dtype": "f4" if small else "f8"}, buffers=[values.tobytes()])
