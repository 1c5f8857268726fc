"""An engine as a rank of a group: several machines that compute one model, and all decide alike."""
