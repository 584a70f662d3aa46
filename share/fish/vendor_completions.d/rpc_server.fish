complete -c rpc_server -l url -d 'Brokers, tried in order; a password is better kept in the environment' -r -f
complete -c rpc_server -l queue -d 'Request queue' -r -f
complete -c rpc_server -l connect-timeout -d 'Bound on opening a connection, handshake included' -r -f
complete -c rpc_server -l connection-name -d 'Name of the connection in the broker\'s list [default: program, host and process number]' -r -f
complete -c rpc_server -l queue-type -d 'Type of the request queue, used only if this server creates it' -r -f -a "classic\t'On one node: fastest'
quorum\t'Replicated over a cluster: survives the loss of a node'"
complete -c rpc_server -l bind -d 'Have an exchange hand on to the request queue what is published to it with this key; may be repeated' -r -f
complete -c rpc_server -l prefetch -d 'Unacknowledged requests that the broker pushes to each worker; 0: no limit' -r -f
complete -c rpc_server -l workers -d 'Threads that answer, each with a channel of its own on the one connection' -r -f
complete -c rpc_server -l procedure -d 'Offer a program (NAME=COMMAND; \'*=COMMAND\' is for all other names), or of the built-in procedures only those named; may be repeated' -r -f -a "fib\t''
fun\t''
a\t''
b\t''"
complete -c rpc_server -l coprocess -d 'Offer a program that stays: it gets each request as a line, and answers with a line; may be repeated' -r -f
complete -c rpc_server -l json-coprocess -d 'The same by JSON objects, so that any bytes go through; may be repeated' -r -f
complete -c rpc_server -l coprocess-calls -d 'Replace a program that stays after N calls, should it leak' -r -f
complete -c rpc_server -l content-type -d 'What results are said to be [default: text/plain or application/octet-stream, by their bytes]. With a type of JSON, an error is JSON too' -r -f
complete -c rpc_server -l time-limit -d 'Bound on each program that runs, and on each call of one that stays; 0: none' -r -f
complete -c rpc_server -l kill-delay -d 'How long a program that is to end has between SIGTERM and SIGKILL; 0: SIGKILL at once' -r -f
complete -c rpc_server -l max-calls -d 'End after N calls, of all workers together' -r -f
complete -c rpc_server -l idle-exit -d 'End when there was nothing to do for so long' -r -f
complete -c rpc_server -l metrics -d 'Tell numbers by HTTP, for Prometheus, at /metrics, and at /healthz whether all workers consume; without ADDRESS, on loopback' -r -f
complete -c rpc_server -l algorithm -d 'How fib is computed' -r -f -a "fast-doubling\t'Two numbers doubled at a time: fast for every n'
iterative\t'One addition for each step'
recursive\t'The tutorial\'s, slow on purpose'"
complete -c rpc_server -l max-n -d 'Largest n that fib accepts [default: 1000000; 45 when recursive]' -r -f
complete -c rpc_server -l drill -d 'Misbehave on purpose, for teaching and tests' -r -f -a "crash-before-reply\t''
crash-before-ack\t''
duplicate-reply\t''
wrong-correlation-id\t''
slow=DURATION\t''
fail\t''"
complete -c rpc_server -l confirm -d 'Have the broker confirm what is published; on without it if several brokers are given'
complete -c rpc_server -s q -l quiet -d 'No transcript and no warnings; errors are told all the same'
complete -c rpc_server -s v -l verbose -d 'Tell each AMQP step on stderr (-vv, -vvv: more); RUST_LOG overrides'
complete -c rpc_server -l at-most-once -d 'Ack each request before it is called, and call none that comes redelivered: no call runs twice'
complete -c rpc_server -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rpc_server -s V -l version -d 'Print version'
