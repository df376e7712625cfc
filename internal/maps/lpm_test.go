package maps

import "testing"

// TestLPMByWalking reads LPM tries as on kernels whose walk takes another prefix
// for one that isn't there.
func TestLPMByWalking(t *testing.T) {
	exact := nextIsExact
	nextIsExact = func() bool { return false }
	defer func() { nextIsExact = exact }()
	t.Run("kinds", TestKinds)
	t.Run("prefixes", TestLPM)
	t.Run("import", TestImportTouchesOnlyDifferences)
	t.Run("replace", TestImportReplacePrefix)
	t.Run("round trip", TestImportRoundTrip)
	t.Run("clear", TestClear)
}
