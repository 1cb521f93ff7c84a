#!/bin/sh
# Obtains the real backends that are not on PyPI, all of them or some:
#
#     install.sh [PROGRAM ...]
#
# Debian packages them. They are unpacked, not installed: a private apt root
# under .cache/backends reads a newer suite from the mirror that this machine's
# own apt sources name, so neither root nor a change to the system is needed.
# The programs end up in .cache/backends/bin; a second run does nothing.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/backends
programs=${*:-victoria-metrics vmagent prometheus promtool}

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
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/empty" "$work/deb" "$work/unpacked"
: >"$work/status"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "$work/empty";
Dir::Etc::preferencesparts "$work/empty";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
CONF

# Archive addresses of the machine, in both formats that apt reads.
mirrors=$(
    sed -n \
        -e 's/#.*//' \
        -e 's/^URIs:[[:space:]]*//p' \
        -e 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\)[[:space:]].*/\2/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
        tr ' ' '\n' | grep -E '^https?://' | sort -u
) || true

obtain() { # mirror suite
    echo "deb $1 $2 main" >"$work/sources.list"
    rm -rf "$work/deb" "$work/unpacked"
    mkdir "$work/deb" "$work/unpacked"
    APT_CONFIG=$work/apt.conf apt-get -qq -o APT::Update::Error-Mode=any update || return 1
    # vmagent is in the package of VictoriaMetrics.
    packages=$(for program in $missing; do echo "$program"; done | sed 's/^vmagent$/victoria-metrics/' | sort -u)
    # shellcheck disable=SC2086 # one word per package
    (cd "$work/deb" && APT_CONFIG=$work/apt.conf apt-get -qq download $packages) || return 1
    for package in "$work"/deb/*.deb; do
        dpkg -x "$package" "$work/unpacked" || return 1
    done
    for program in $missing; do
        runs "$work/unpacked/usr/bin/$program" || return 1
    done
    for program in $missing; do
        mv "$work/unpacked/usr/bin/$program" "$cache/bin/$program"
    done
}

for suite in sid trixie; do
    for mirror in $mirrors; do
        if obtain "$mirror" $suite >>"$work/log" 2>&1; then
            echo "$0:$missing from Debian $suite in $cache/bin"
            exit 0
        fi
    done
done
cat "$work/log" >&2
echo "$0: could not obtain$missing from any of this machine's apt sources" >&2
exit 1
