"""What is read: the generated blocks of the README, the notebooks, the reading site. Needs a clone."""
