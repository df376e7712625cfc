# bash completion for bpfnet
# Made from templates/ by "go generate ./completions"; edit it there.
# Install: bpfnet completion bash >/etc/bash_completion.d/bpfnet

_bpfnet() {
	local line=${COMP_LINE:0:COMP_POINT} words word candidates candidate kept
	COMPREPLY=()
	read -ra words <<<"$line"
	[[ $line == *[[:space:]] ]] && words+=("")
	word=${words[${#words[@]} - 1]}
	kept=${word%"${word##*[=:]}"} # bash replaces only what follows a = or :
	mapfile -t candidates < <("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
	for candidate in "${candidates[@]}"; do
		case $candidate in
		:files) compopt -o filenames && mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$word") ;;
		:dirs) compopt -o filenames && mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -d -- "$word") ;;
		*)
			candidate=${candidate%%$'\t'*}
			[[ $candidate == *[=:] ]] && compopt -o nospace
			COMPREPLY+=("${candidate#"$kept"}")
			;;
		esac
	done
}

complete -F _bpfnet bpfnet
