#!/usr/bin/env bash
# The moving picture of the README, docs/demo.svg: types a session into three terminals on a private node (see broker.sh), and
# draws what they show. record.py has the session; its terminals are pyte's, a terminal emulator in Python.
#
# usage: record.sh [--programs FOLDER] [PICTURE.svg]      (without a word: docs/demo.svg of this project)
#
# --programs FOLDER has the programs already: nothing is built.
# Exit code: 0; 69 if something is missing; 70 if the build fails; 1 if the terminals do not show what they should in time, or
# the picture would not take 20 to 40 s.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

programs=''
case ${1-} in
    -h | --help)
        show_help "$here/record.sh"
        exit
        ;;
    --programs)
        given_programs "${2-}" 'record.sh [--programs FOLDER] [PICTURE.svg]'
        shift 2
        ;;
esac
if [ $# -gt 1 ]; then fail 64 'usage: record.sh [--programs FOLDER] [PICTURE.svg]'; fi
picture=$(readlink -f "${1:-$here/../docs/demo.svg}") || fail 69 "there is no folder for ${1-docs/demo.svg}; make it first"
enter_root "$here"
if [ -z "$programs" ]; then build_release; fi
install_python "$target/record" scripts/record.txt pyte || fail 69 'could not install pyte, see above'
# A broker that is there already may have servers on the default queue.
unset AMQP_URL BROKER_DIR
exec "$here/broker.sh" run -- "$target/record/bin/python" "$here/record.py" "$programs" "$picture"
