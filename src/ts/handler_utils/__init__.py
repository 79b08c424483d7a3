"""What handlers call besides their base class."""
