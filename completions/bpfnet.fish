# fish completion for bpfnet
# Made from templates/ by "go generate ./completions"; edit it there.
# Install: bpfnet completion fish >~/.config/fish/completions/bpfnet.fish

function __bpfnet_complete
	set -l words (commandline -opc) (commandline -ct)
	for candidate in ($words[1] __complete -- $words[2..-1] 2>/dev/null)
		switch $candidate
			case :files
				__fish_complete_path (commandline -ct)
			case :dirs
				__fish_complete_directories (commandline -ct)
			case '*'
				printf '%s\n' $candidate
		end
	end
end

complete -c bpfnet -f -a '(__bpfnet_complete)'
