"""The parts of Pyro's variational inference that Ember fits to a plan."""
