# Sourced: packages of a newer Debian suite, unpacked instead of installed.
#
# A private apt root reads the suite from the mirror that this machine's own apt
# sources name, so neither root nor a change to the system is needed.

# Archive addresses of the machine, in both formats that apt reads.
mirrors() {
    sed -n \
        -e 's/#.*//' \
        -e 's/^URIs:[[:space:]]*//p' \
        -e 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\)[[:space:]].*/\2/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
        tr ' ' '\n' | grep -E '^https?://' | sort -u
}

# private_root FOLDER: an empty root with its configuration.
private_root() {
    mkdir -p "$1/lists/partial" "$1/archives/partial" "$1/empty"
    : >"$1/status"
    cat >"$1/apt.conf" <<CONF
Dir::Etc::sourcelist "$1/sources.list";
Dir::Etc::sourceparts "$1/empty";
Dir::Etc::preferencesparts "$1/empty";
Dir::State::lists "$1/lists";
Dir::State::status "$1/status";
Dir::Cache "$1";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
CONF
    export APT_CONFIG="$1/apt.conf"
}

# read_suite FOLDER MIRROR SUITE
read_suite() {
    echo "deb $2 $3 main" >"$1/sources.list"
    apt-get -qq -o APT::Update::Error-Mode=any update
}

# unpack FOLDER PACKAGE...: into FOLDER/unpacked, of the suite that was read last.
unpack() {
    folder=$1
    shift
    rm -rf "$folder/deb" "$folder/unpacked"
    mkdir "$folder/deb" "$folder/unpacked"
    (cd "$folder/deb" && apt-get -qq download "$@") || return 1
    for package in "$folder"/deb/*.deb; do
        dpkg -x "$package" "$folder/unpacked" || return 1
    done
}
