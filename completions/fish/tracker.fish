# Words of tracker(1) for fish.
function __narswarm_tracker
    set -l words COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t)
    for line in (env _TRACKER_COMPLETE=fish_complete $words tracker)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case '*'
                echo $parts[2]
        end
    end
end
complete --no-files --command tracker --arguments '(__narswarm_tracker)'
