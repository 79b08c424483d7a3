"""The import paths of the Kaptain SDK, for programs that were written for it; what they name is in mariner."""
