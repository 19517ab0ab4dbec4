"""State-space models with a complex diagonal state matrix that does not depend on the token."""

from zoology.kernels.diagonal_ssm.reference import diagonal_ssm, diagonal_ssm_step

__all__ = ["diagonal_ssm", "diagonal_ssm_step"]
