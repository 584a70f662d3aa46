# Tables, as Markdown, from the raw numbers of scripts/bench.sh.
BEGIN { FS = "," }
FNR == 1 { next }
$1 == "about" { about = about (about ? ", " : "") ($2 == "machine" ? $5 " " $3 : $5); next }
{
    key = $1 SUBSEP $2 SUBSEP $3
    value[key, $4] = $5
    count[key]++
    rounds[key, count[key]] = $4
    seen[$2] = 1
}

function median(list, n,    i, j, x) {
    for (i = 2; i <= n; i++) {
        x = list[i]
        for (j = i - 1; j >= 1 && list[j] > x; j--) list[j + 1] = list[j]
        list[j + 1] = x
    }
    return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
}

function typical(row, peer, metric,    key, list, i) {
    key = row SUBSEP peer SUBSEP metric
    for (i = 1; i <= count[key]; i++) list[i] = value[key, rounds[key, i]] + 0
    return median(list, count[key])
}

function best(row, peer, metric,    key, i, x) {
    key = row SUBSEP peer SUBSEP metric
    for (i = 1; i <= count[key]; i++) if (value[key, rounds[key, i]] + 0 > x) x = value[key, rounds[key, i]] + 0
    return x
}

# Of the pairs that ran side by side.
function ratio(row, peer, other, metric,    key, base, list, i, n, round) {
    key = row SUBSEP peer SUBSEP metric
    base = row SUBSEP other SUBSEP metric
    for (i = 1; i <= count[key]; i++) {
        round = rounds[key, i]
        if (value[base, round] + 0 > 0) list[++n] = value[key, round] / value[base, round]
    }
    return n ? median(list, n) : 0
}

function number(x) {
    return sprintf(x < 10 ? "%.2f" : x < 100 ? "%.1f" : "%.0f", x)
}

# In characters: LC_ALL=C counts the bytes of UTF-8, of which some continue a character.
function size(text) {
    gsub(/[\200-\277]/, "", text)
    return length(text)
}

function cell(i, text) {
    table[lines, i] = text
    if (size(text) > width[i]) width[i] = size(text)
    if (i > columns) columns = i
}

# What was measured, as a line with a column for each peer; with a variant, of those peers which have it.
function line(text, row, metric, scale, variant,    i, other, times) {
    if (!((row, "ours", metric) in count) || variant && !((row, "c" variant, metric) in count)) return
    lines++
    cell(1, text)
    for (i = 1; i <= peers; i++) {
        other = i > 1 ? peer[i] variant : "ours"
        if (!((row, other, metric) in count)) { cell(i + 1, "–"); continue }
        times = ratio(row, other, "ours", metric)
        cell(i + 1, number(typical(row, other, metric) / scale) (i > 1 && times ? " (" number(times) ")" : ""))
    }
}

function compared(metric) {
    return number(typical("settings", setting[j], metric)) (j > 1 ? " (" number(ratio("settings", setting[j], setting[1], metric)) ")" : "")
}

function print_table(    i, j, text) {
    if (lines < 2) { forget(); return }
    for (j = 1; j <= lines; j++) {
        text = ""
        for (i = 1; i <= columns; i++) text = text "| " table[j, i] substr(spaces, 1, width[i] - size(table[j, i]) + 1)
        print text "|"
        if (j == 1) {
            text = ""
            for (i = 1; i <= columns; i++) text = text "|" (i > 1 ? substr(dashes, 1, width[i] + 1) ":" : substr(dashes, 1, width[i] + 2))
            print text "|"
        }
    }
    print ""
    forget()
}

# This pair, xargs and GNU parallel with the same program.
function beside_parallel(row, said) {
    if (!((row, "parallel", "per_s") in count)) return
    printf "%s, two at a time: %s calls/s; xargs -P2 -n1: %s a second (this pair: %s of that); GNU parallel -j2: %s (%s).\n\n", said, number(typical(row, "ours", "per_s")), number(typical(row, "xargs", "per_s")), number(ratio(row, "ours", "xargs", "per_s")), number(typical(row, "parallel", "per_s")), number(ratio(row, "ours", "parallel", "per_s"))
}

function tail_of(peer, said) {
    printf "%s: %s s (%s)", said, number(typical("tail", peer, "wall_s")), number(typical("tail", peer, "wall_s") / bound)
}

function forget() {
    lines = columns = 0
    split("", table)
    split("", width)
}

END {
    dashes = spaces = sprintf("%80s", "")
    gsub(/ /, "-", dashes)
    split("ours c lapin go pika", order, " ")
    split("this pair,C,Rust with lapin,Go,Python", name, ",")
    lines = 1
    cell(1, "medians (ratio to this pair)")
    for (i = 1; i <= 5; i++) if (order[i] in seen) { peer[++peers] = order[i]; cell(peers + 1, name[i]) }
    line("one call as a whole process, ms", "process", "wall_ms", 1)
    line("– until the answer is on standard output, ms", "process", "answer_ms", 1)
    line("one after another: p50, µs", "sequential", "p50_us", 1)
    line("– with an expiration", "sequential", "p50_us", 1, "_expiring")
    line("– with all properties of ours", "sequential", "p50_us", 1, "_alike")
    line("one after another: p99, µs", "sequential", "p99_us", 1)
    line("256 in flight, prefetch 64: calls/s", "pipelined", "per_s", 1)
    line("– with an expiration", "pipelined", "per_s", 1, "_expiring")
    line("– with all properties of ours", "pipelined", "per_s", 1, "_alike")
    line("– processor time a call: client, µs", "pipelined", "client_cpu_us", 1)
    line("– processor time a call: server, µs", "pipelined", "server_cpu_us", 1)
    line("– processor time a call: broker, µs", "pipelined", "broker_cpu_us", 1)
    line("– peak memory: client, MiB", "pipelined", "client_kib", 1024)
    line("– peak memory: server, MiB", "pipelined", "server_kib", 1024)
    line("1 MB there and back: p50, ms", "large", "p50_us", 1000)
    line("– peak memory: client, MiB", "large", "client_kib", 1024)
    line("– peak memory: server, MiB", "large", "server_kib", 1024)
    print_table()

    if (("pipelined", "broker", "per_s") in count) {
        per_s = typical("pipelined", "broker", "per_s")
        printf "The broker alone, publish and consume on one connection: %s messages/s with 256 in flight; a call is two messages, so this pair's %s calls/s are %.0f %% of it.\n", number(per_s), number(typical("pipelined", "ours", "per_s")), 200 * ratio("pipelined", "ours", "broker", "per_s")
    }
    if (("sequential", "broker", "p50_us") in count)
        printf "One after another: a message takes %s µs there and back; a call takes this pair as long as %s of them.\n", number(typical("sequential", "broker", "p50_us")), number(ratio("sequential", "ours", "broker", "p50_us"))
    if ("broker" in seen) print ""

    if (("commands", "ours", "per_s") in count) {
        printf "A program (true) for each call, two at a time: %s calls/s; xargs -P2 -n1 starts %s of them a second without any calls (this pair: %s of that)", number(typical("commands", "ours", "per_s")), number(typical("commands", "xargs", "per_s")), number(ratio("commands", "ours", "xargs", "per_s"))
        if (("commands", "pika", "per_s") in count)
            printf "; two servers with pika and subprocess: %s calls/s (%s)", number(typical("commands", "pika", "per_s")), number(ratio("commands", "pika", "ours", "per_s"))
        printf "; with prefetch 1: %s (%s)", number(typical("commands", "prefetch-1", "per_s")), number(ratio("commands", "prefetch-1", "ours", "per_s"))
        if (("commands", "ours", "server_cpu_us") in count)
            printf ". Processor time a call: the server %s µs, its program %s µs; of xargs and a program, together %s µs", number(typical("commands", "ours", "server_cpu_us")), number(typical("commands", "ours", "child_cpu_us")), number(typical("commands", "xargs", "cpu_us"))
        print ".\n"
    }
    beside_parallel("commands", "A program (true) for each call")
    beside_parallel("files", "sha256sum of a file of 100 kB for each call")
    if (("tail", "unordered", "wall_s") in count) {
        bound = typical("tail", "bound", "wall_s")
        printf "1 %% of 1,000 calls take a hundred times as long, 8 at a time: %s s would do", number(bound)
        tail_of("unordered", "; --unordered")
        tail_of("ours", "; in order")
        tail_of("xargs", "; xargs -P8 -n1")
        tail_of("parallel", "; GNU parallel -j8")
        tail_of("parallel-k", "; with -k")
        print ".\n"
    }
    if (("names", "ours", "client_kib") in count)
        printf "A million names of files, with an output each: the client has %s MB at the most.\n\n", number(typical("names", "ours", "client_kib") * 1024 / 1e6)

    if (("coprocess", "echo", "per_s") in count) {
        printf "Programs that stay: one in C that echoes answers %s calls/s with 256 in flight, %s of the built-in fun (%s); one after another, p50 is %s µs, of fun %s µs. One in Python answers %s calls/s", number(typical("coprocess", "echo", "per_s")), number(ratio("coprocess", "echo", "fun", "per_s")), number(typical("coprocess", "fun", "per_s")), number(typical("coprocess", "echo", "p50_us")), number(typical("coprocess", "fun", "p50_us")), number(typical("coprocess", "python", "per_s"))
        if (("coprocess", "pika", "per_s") in count)
            printf ", %s times as many as a server with pika (%s)", number(ratio("coprocess", "python", "pika", "per_s")), number(typical("coprocess", "pika", "per_s"))
        printf ", and %s times as many as when it is started for each call (%s).\n\n", number(ratio("coprocess", "python", "each", "per_s")), number(typical("coprocess", "each", "per_s"))
    }

    if (("cpu", "2", "per_s") in count) {
        lines = 1
        cell(1, "recursive fib")
        cell(2, "1 worker")
        cell(3, "2 workers (ratio)")
        lines = 2
        cell(1, "calls/s, median")
        cell(2, number(typical("cpu", "1", "per_s")))
        cell(3, number(typical("cpu", "2", "per_s")) " (" number(ratio("cpu", "2", "1", "per_s")) ")")
        # What else the machine does takes from two workers more than from one.
        lines = 3
        cell(1, "calls/s, best round")
        cell(2, number(x = best("cpu", "1", "per_s")))
        cell(3, number(best("cpu", "2", "per_s")) " (" number(best("cpu", "2", "per_s") / x) ")")
        print_table()
    }

    lines = 1
    cell(1, "fib(n) by algorithm, a call, ms")
    split("fast-doubling iterative recursive", algorithm, " ")
    for (i = 1; i <= 3; i++) cell(i + 1, algorithm[i])
    split("40 1000 10000 100000 1000000 10000000", n, " ")
    for (j = 1; j <= 6; j++) {
        if (!(("fib-" n[j], "fast-doubling", "p50_us") in count)) continue
        lines++
        cell(1, "n = " n[j])
        for (i = 1; i <= 3; i++)
            cell(i + 1, (("fib-" n[j], algorithm[i], "p50_us") in count) ? number(typical("fib-" n[j], algorithm[i], "p50_us") / 1000) : "–")
    }
    print_table()
    lines = 1
    cell(1, "prefetch 64, 256 in flight, but for")
    cell(2, "calls/s (ratio)")
    cell(3, "one after another: p50, µs (ratio)")
    split("prefetch-64 prefetch-1 prefetch-8 prefetch-0 in-flight-1 in-flight-8 in-flight-64 in-flight-1024 workers-2 quorum confirms no-time-limit", setting, " ")
    split("nothing,prefetch 1,prefetch 8,no limit of prefetch,1 in flight,8 in flight,64 in flight,1024 in flight,2 workers,a quorum queue,confirms,no time limit", said, ",")
    for (j = 1; j <= 12; j++) {
        if (!(("settings", setting[j], "per_s") in count)) continue
        lines++
        cell(1, said[j])
        cell(2, compared("per_s"))
        cell(3, (("settings", setting[j], "p50_us") in count) ? compared("p50_us") : "–")
    }
    print_table()
    print about "."
}
