#!/bin/sh
# Builds the core of the OpenTelemetry Collector from Debian's Go packages.
#
# Nobody packages the program itself. About 300 MB to download, 3 GB on disk
# while it works, two minutes on two cores; the result is 45 MB, in
# .cache/backends/bin. A second run does nothing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
cache=$root/.cache/backends
. "$root/tests/backends/apt.sh"

"$cache/bin/otelcol" --version >/dev/null 2>&1 && exit 0

mkdir -p "$cache/bin"
work=$(mktemp -d "$cache/otelcol.XXXXXX")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
private_root "$work"

sources() { # mirror
    read_suite "$work" "$1" sid || return 1
    go=$(apt-cache depends golang-go | sed -n 's/.*Depends: golang-\([0-9.]*\)-go$/\1/p')
    packages=$(
        apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
            --no-enhances golang-opentelemetry-collector-dev "golang-$go-go" | grep -E '^golang-[a-z0-9.+-]+$' | sort -u
    )
    # shellcheck disable=SC2086 # one word per package
    unpack "$work" $packages "golang-$go-src"
}

for mirror in $(mirrors); do
    if sources "$mirror" >>"$work/log" 2>&1; then
        rm -rf "$work/deb"
        mkdir -p "$work/go/src/otelcol"
        cp "$here/main.go" "$work/go/src/otelcol/"
        export GOROOT="$work/unpacked/usr/lib/go-$go" GOPATH="$work/go:$work/unpacked/usr/share/gocode"
        export GOCACHE="$work/build" GO111MODULE=off GOFLAGS=-trimpath GOTOOLCHAIN=local CGO_ENABLED=0
        "$GOROOT/bin/go" build -o "$cache/bin/otelcol" otelcol
        echo "$0: $("$cache/bin/otelcol" --version) in $cache/bin"
        exit 0
    fi
done
tail -n 40 "$work/log" >&2
echo "$0: could not obtain the sources from any of this machine's apt sources" >&2
exit 1
