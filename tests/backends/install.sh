#!/bin/sh
# Obtains the real backends that are not on PyPI, all of them or some:
#
#     install.sh [PROGRAM ...]
#
# Debian packages them. The programs end up in .cache/backends/bin; a second run
# does nothing.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/backends
programs=${*:-victoria-metrics vmagent prometheus promtool}
. "$root/tests/backends/apt.sh"

runs() { "$1" --version >/dev/null 2>&1; }

missing=
for program in $programs; do
    runs "$cache/bin/$program" || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

for tool in apt-get dpkg; do
    command -v $tool >/dev/null || {
        echo "$0: no $tool here: put$missing in $cache/bin or on PATH yourself" >&2
        exit 1
    }
done

mkdir -p "$cache/bin"
work=$(mktemp -d "$cache/apt.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
private_root "$work"

obtain() { # mirror suite
    # vmagent is in the package of VictoriaMetrics.
    packages=$(for program in $missing; do echo "$program"; done | sed 's/^vmagent$/victoria-metrics/' | sort -u)
    read_suite "$work" "$1" "$2" || return 1
    # shellcheck disable=SC2086 # one word per package
    unpack "$work" $packages || return 1
    for program in $missing; do
        runs "$work/unpacked/usr/bin/$program" || return 1
    done
    for program in $missing; do
        mv "$work/unpacked/usr/bin/$program" "$cache/bin/$program"
    done
}

for suite in sid trixie; do
    for mirror in $(mirrors); do
        if obtain "$mirror" $suite >>"$work/log" 2>&1; then
            echo "$0:$missing from Debian $suite in $cache/bin"
            exit 0
        fi
    done
done
cat "$work/log" >&2
echo "$0: could not obtain$missing from any of this machine's apt sources" >&2
exit 1
