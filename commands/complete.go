package commands

// completeWord is the hidden command that the shell scripts call.
const completeWord = "__complete"
