//go:build !race

package test

// raceDetector says that the tests look for data races, and bpfnet has to.
const raceDetector = false
