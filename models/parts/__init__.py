"""What models share: checks of their data, weak default priors, plates, chains and designs."""
