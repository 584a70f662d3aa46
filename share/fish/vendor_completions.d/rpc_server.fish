complete -c rpc_server -l url -d 'Broker; of several, the first that answers. A password in AMQP_URL is hidden from other users' -r -f
complete -c rpc_server -l queue -d 'Name of the request queue' -r -f
complete -c rpc_server -l connect-timeout -d 'Give up connecting after this long' -r -f
complete -c rpc_server -l connection-name -d 'Name that the broker shows for the connection [default: program, host and process number]' -r -f
complete -c rpc_server -l queue-type -d 'Type of the request queue, if this server has to create it' -r -f -a "classic\t'On one node: fastest'
quorum\t'Replicated over a cluster: survives the loss of a node'"
complete -c rpc_server -l bind -d 'Bind the request queue to EXCHANGE with the routing key KEY; may be repeated' -r -f
complete -c rpc_server -l prefetch -d 'Requests a worker may hold unanswered; 0: no limit' -r -f
complete -c rpc_server -l workers -d 'Calls answered at the same time, each by a thread with a channel of its own' -r -f
complete -c rpc_server -l procedure -d 'Offer a program as the procedure NAME; \'*\' stands for all other names. NAME alone keeps that built-in procedure; all others are hidden, but for ping and list. May be repeated' -r -f -a "fib\t''
fun\t''
a\t''
b\t''"
complete -c rpc_server -l coprocess -d 'Offer a program that is started once and stays: it gets a line for each request, and answers with a line. May be repeated' -r -f
complete -c rpc_server -l json-coprocess -d 'The same, with a JSON object on each line, so that any bytes go through. May be repeated' -r -f
complete -c rpc_server -l coprocess-calls -d 'Replace a program that stays after it has answered N calls, in case it leaks' -r -f
complete -c rpc_server -l content-type -d 'Content type of results; with a JSON type, errors are JSON too [default: text/plain or application/octet-stream, by their bytes]' -r -f
complete -c rpc_server -l time-limit -d 'End a program that takes longer than this for a call; 0: never' -r -f
complete -c rpc_server -l kill-delay -d 'Send SIGKILL to a program that is still there this long after SIGTERM; 0: at once' -r -f
complete -c rpc_server -l max-calls -d 'Exit after N calls, counted over all workers' -r -f
complete -c rpc_server -l idle-exit -d 'Exit after this long without a call' -r -f
complete -c rpc_server -l metrics -d 'Serve /metrics (numbers for Prometheus) and /healthz (whether all workers consume) over HTTP; without ADDRESS, on 127.0.0.1' -r -f
complete -c rpc_server -l algorithm -d 'Algorithm of fib' -r -f -a "fast-doubling\t'Two numbers doubled at a time: fast for every n'
iterative\t'One addition for each step'
recursive\t'The tutorial\'s, slow on purpose'"
complete -c rpc_server -l max-n -d 'Largest n that fib accepts [default: 1000000; 45 when recursive]' -r -f
complete -c rpc_server -l drill -d 'Misbehave on purpose, for teaching and tests' -r -f -a "crash-before-reply\t''
crash-before-ack\t''
duplicate-reply\t''
wrong-correlation-id\t''
slow=DURATION\t''
fail\t''"
complete -c rpc_server -l confirm -d 'Have the broker confirm each message (publisher confirms); always on if several brokers are given'
complete -c rpc_server -s q -l quiet -d 'No transcript and no warnings; errors are still printed'
complete -c rpc_server -s v -l verbose -d 'Print each AMQP step on stderr (-vv, -vvv: more); RUST_LOG overrides it'
complete -c rpc_server -l at-most-once -d 'Ack each request before its call, and refuse a request that comes again: no call runs twice'
complete -c rpc_server -s h -l help -d 'Print help (see more with \'--help\')'
complete -c rpc_server -s V -l version -d 'Print version'
