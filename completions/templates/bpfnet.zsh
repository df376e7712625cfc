#compdef bpfnet
# Made from templates/ by "go generate ./completions"; edit it there.
# zsh completion for bpfnet
# Install: bpfnet completion zsh >"${fpath[1]}/_bpfnet"

_bpfnet() {
	local candidate word about
	local -a plain joined
	for candidate in "${(@f)$("${words[1]}" {{.Complete}} -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
		case $candidate in
		"") ;;
		{{.Files}}) _files ;;
		{{.Dirs}}) _files -/ ;;
		*)
			word=${candidate%%$'\t'*}
			about=${candidate#"$word"}
			about=${about#$'\t'}
			if [[ $word == *[=:] ]]; then
				joined+=("${word//:/\\:}:$about")
			else
				plain+=("${word//:/\\:}:$about")
			fi
			;;
		esac
	done
	(( $#plain )) && _describe -V bpfnet plain
	(( $#joined )) && _describe -V bpfnet joined -S ""
	return 0
}

if [[ $funcstack[1] == _bpfnet ]]; then
	_bpfnet "$@"
else
	compdef _bpfnet bpfnet
fi
