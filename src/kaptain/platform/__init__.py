"""Import paths of the Kaptain SDK."""
