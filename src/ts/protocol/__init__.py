"""An old import path; nothing new lives here."""
