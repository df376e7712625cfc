// Package nearest finds words that are like another one, for hints.
package nearest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Word returns the word that is most like the given one, or "" when none is
// close enough to be meant.
func Word(word string, words []string) string {
	best, least := "", len(word)/3+2
	for _, w := range words {
		if d := distance(word, w); d < least && d < len(w) {
			best, least = w, d
		}
	}
	return best
}

// Hint says which of the words may be meant, whatever the case, or names all.
func Hint(word string, words []string) string {
	if near := Word(strings.ToLower(word), words); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "one of: " + strings.Join(words, ", ")
}

// distance is how many letters have to be added, removed, changed or swapped
// with their neighbour to turn a into b.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range b {
		rows[0][j+1] = j + 1
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			change := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			rows[i][j] = min(change, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// First returns a copy of the words in which those that are most like the given
// one come first. part says what of a word is compared.
func First(word string, words []string, part func(string) string) []string {
	sorted := slices.Clone(words)
	slices.SortStableFunc(sorted, func(a, b string) int { return cmp.Compare(distance(word, part(a)), distance(word, part(b))) })
	return sorted
}
