"""The steps that a CI plan calls, one file each. They run the same on a laptop, so a red build can be repeated at one's desk."""
