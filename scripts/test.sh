#!/usr/bin/env bash
# All tests, against a real RabbitMQ: gets what the build and the tests miss, builds, then runs them with a broker
# in AMQP_URL (see broker.sh). Tests that need to break a broker start nodes of their own.
#
# usage: test.sh [ARGUMENT...]      (arguments of cargo test)
# Exit code: that of cargo test; 69 if something is missing.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

case ${1-} in
    -h | --help)
        show_help "$here/test.sh"
        exit
        ;;
esac
enter_root "$here"
need_build
# For what the documents do.
need_command jq
need_command cmark
need_command sqlite3
"$here/broker.sh" install
# Before there is a broker, so that a compile error shows at once. Documentation tests cannot be built apart.
case " $* " in
    *' --doc '*) ;;
    *) cargo test --locked --no-run "$@" ;;
esac
exec "$here/broker.sh" run -- cargo test --locked "$@"
