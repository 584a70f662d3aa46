complete -c rpc_client -l timeout -d 'Give up a call this long after sending it, queueing included; 0: never' -r -f
complete -c rpc_client -l retries -d 'Make a failed call again, up to N times, if the failure may pass (exit code 75: timed out, unavailable, connection lost or blocked)' -r -f
complete -c rpc_client -s C -l content-type -d 'Content type of each request; \'\' sends none [default: text/plain, or application/octet-stream if the argument is not UTF-8]' -r -f
complete -c rpc_client -s H -l header -d 'Send a header with each request, as a string; may be repeated' -r -f
complete -c rpc_client -l error-at -d 'Fail a call if its reply\'s JSON has something at POINTER (a JSON pointer such as /err), or VALUE there' -r -f
complete -c rpc_client -l result-at -d 'Take what a reply\'s JSON has at POINTER as the result: a string as it is, anything else as JSON' -r -f
complete -c rpc_client -l in-flight -d 'Calls under way at a time; auto: one for each consumer, and behind them as many as are answered in a quarter of --timeout, up to 64 in all. Results are written in order, so finished calls that wait for a slow one count too, except with --unordered' -r -f -a "auto\t''"
complete -c rpc_client -l repeat -d 'Make each call N times' -r -f
complete -c rpc_client -l send-on -d 'How `-` splits standard input into calls [default: newline]' -r -f -a "newline\t'One call per line'
nul\t'One call per piece that ends with a NUL, as find -print0 writes them'
eof\t'One call with all of standard input, whatever bytes it has'"
complete -c rpc_client -l output -d 'Write each result to a file of its own: {} is the argument, {.} without extension, {/} without folders, {/.} without both, {//} its folder, {#} the call\'s number' -r -F
complete -c rpc_client -l format -d 'How results are written' -r -f -a "auto\t'The transcript on a terminal, plain elsewhere'
transcript\t'The tutorial\'s transcript'
plain\t'Results alone; each ends with a newline, which is added if it is missing'
raw\t'The results\' bytes, with nothing added'
json\t'One JSON object per call, failed calls too'"
complete -c rpc_client -s e -l exchange -d 'Publish requests to this exchange instead of to a queue; \'\' is the default exchange' -r -f
complete -c rpc_client -s r -l routing-key -d 'Routing key of the requests; may have the placeholders of --output [default: empty]' -r -f
complete -c rpc_client -l url -d 'Broker; of several, the first that answers. A password in AMQP_URL is hidden from other users' -r -f
complete -c rpc_client -l queue -d 'Name of the request queue' -r -f
complete -c rpc_client -l connect-timeout -d 'Give up connecting after this long' -r -f
complete -c rpc_client -l connection-name -d 'Name that the broker shows for the connection [default: program, host and process number]' -r -f
complete -c rpc_client -l wait -d 'Wait for a broker, a queue and a server, up to --timeout, instead of failing at once'
complete -c rpc_client -l no-retry -d 'If the connection is lost, do not send unanswered calls again'
complete -c rpc_client -l fail-fast -d 'Stop at the first failure and exit with its code: make no more calls, and drop those after it'
complete -c rpc_client -l unordered -d 'Write each result as it comes, without waiting for earlier calls'
complete -c rpc_client -l files -d 'Take each argument as the name of a file, and send the file\'s content'
complete -c rpc_client -l skip-existing -d 'Skip calls whose output file exists: after Ctrl-C, the same command goes on where it stopped'
complete -c rpc_client -l stats -d 'Print calls per second and latencies on stderr at the end'
complete -c rpc_client -l confirm -d 'Have the broker confirm each message (publisher confirms); always on if several brokers are given'
complete -c rpc_client -s q -l quiet -d 'No transcript and no warnings; errors are still printed'
complete -c rpc_client -s v -l verbose -d 'Print each AMQP step on stderr (-vv, -vvv: more); RUST_LOG overrides it'
complete -c rpc_client -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rpc_client -s V -l version -d 'Print version'
