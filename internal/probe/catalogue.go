package probe

// neededBy returns the names of the built-in programs by the feature that they
// depend on.
func neededBy() map[string][]string { return nil }
