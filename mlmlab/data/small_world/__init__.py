"""The built-in corpus: a finite-state English whose statistics are known exactly."""
