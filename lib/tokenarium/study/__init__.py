"""What a notebook opens: parameters, device, seeds, and a recorder whose results are written whole."""

from tokenarium.study.study import Study, open_study, tensors

__all__ = ["Study", "open_study", "tensors"]
