"""Tables and pictures of what was read and fitted; they read a ``Fitted`` and change nothing."""
