"""Whether a call is the wanted one."""
