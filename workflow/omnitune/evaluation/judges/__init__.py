"""Models that score images: asked at an endpoint or here, their answers kept."""
