"""Training material that is made, not recorded: its labels are exact."""
