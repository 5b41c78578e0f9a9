"""What is measured of images: one function for each measure, and the models that some need."""
