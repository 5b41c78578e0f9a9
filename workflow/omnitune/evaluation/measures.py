"""Names of the measures, for those who write and those who show them."""

CHECKS = ("color", "position", "background", "passed")
MEASURES = ("psnr", "ssim", "loss", *(f"check_{name}" for name in CHECKS))
HIGHER_IS_BETTER = {measure: measure != "loss" for measure in MEASURES}
