complete -c rpc_client -l timeout -d 'Bound on each call from its publication; 0: none' -r -f
complete -c rpc_client -l retries -d 'Try a call again, up to N times, if it failed in a way that may pass (exit code 75: timed out, unavailable, connection lost or blocked)' -r -f
complete -c rpc_client -s C -l content-type -d 'What each request\'s body is, as the server is told; \'\' tells nothing [default: text/plain, or application/octet-stream if it is not UTF-8]' -r -f
complete -c rpc_client -s H -l header -d 'A header of each request, a string; may be repeated' -r -f
complete -c rpc_client -l error-at -d 'A reply whose JSON has something at POINTER, such as /err, or VALUE there, is an error' -r -f
complete -c rpc_client -l result-at -d 'The result is what a reply\'s JSON has at POINTER: a string as it is, anything else as JSON' -r -f
complete -c rpc_client -l in-flight -d 'Calls under way at a time; auto: up to 64, one for each consumer, and behind them as many as are answered in a quarter of --timeout. Results are written in order, so a slow call holds back those behind it, and those count too; --unordered ends that' -r -f -a "auto\t''"
complete -c rpc_client -l repeat -d 'Make each call N times' -r -f
complete -c rpc_client -l send-on -d 'What ends an argument on standard input, where `-` is among the arguments [default: newline]' -r -f -a "newline\t'A call for each line'
nul\t'A call for each piece that a NUL ends, as find -print0 writes them'
eof\t'One call, with all of standard input, whatever bytes'"
complete -c rpc_client -l output -d 'Write each result to a file of its own: {} is the argument, {.} without extension, {/} without folders, {/.} without both, {//} its folder, {#} the call\'s number' -r -F
complete -c rpc_client -l format -d 'How results are written' -r -f -a "auto\t'The transcript on a terminal, plain elsewhere'
transcript\t'The tutorial\'s transcript'
plain\t'Nothing but results, each with a newline unless it ends with one'
raw\t'The results\' bytes, and nothing added'
json\t'One object a call, failed ones too'"
complete -c rpc_client -s e -l exchange -d 'Exchange for the requests, in place of a queue; \'\' is the default one' -r -f
complete -c rpc_client -s r -l routing-key -d 'Routing key of the requests, with the placeholders of --output [default: empty]' -r -f
complete -c rpc_client -l url -d 'Brokers, tried in order; a password is better kept in the environment' -r -f
complete -c rpc_client -l queue -d 'Request queue' -r -f
complete -c rpc_client -l connect-timeout -d 'Bound on opening a connection, handshake included' -r -f
complete -c rpc_client -l connection-name -d 'Name of the connection in the broker\'s list [default: program, host and process number]' -r -f
complete -c rpc_client -l wait -d 'Wait, up to the timeout, for a broker, a queue and a server instead of failing at once'
complete -c rpc_client -l no-retry -d 'Do not send unanswered calls again after a lost connection'
complete -c rpc_client -l fail-fast -d 'End at the first failure, with its code: make no more calls, and give up those after it'
complete -c rpc_client -l unordered -d 'Write each result when it comes: no call waits for an earlier one'
complete -c rpc_client -l files -d 'Each argument names a file, and what is in it is sent'
complete -c rpc_client -l skip-existing -d 'Do not make calls whose output file exists: after Ctrl-C the same command goes on where it stopped'
complete -c rpc_client -l stats -d 'Tell calls per second and latencies on stderr at the end'
complete -c rpc_client -l confirm -d 'Have the broker confirm what is published; on without it if several brokers are given'
complete -c rpc_client -s q -l quiet -d 'No transcript and no warnings; errors are told all the same'
complete -c rpc_client -s v -l verbose -d 'Tell each AMQP step on stderr (-vv, -vvv: more); RUST_LOG overrides'
complete -c rpc_client -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rpc_client -s V -l version -d 'Print version'
