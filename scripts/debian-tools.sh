#!/bin/sh
# Programs for tests, from Debian's packages: promtool, zabbix_agentd and zabbix_get check our monitoring files, Go and PHP run the clients of
# docs/how-to, debootstrap makes a fresh Debian, a headless Chromium opens the page of `mlops-build models`. With `server`, for the soak, instead of the last four: a Zabbix server, its frontend, PHP and
# PostgreSQL. They are unpacked into a folder of the user's cache and installed nowhere; root is not needed.
#
#     eval "$(scripts/debian-tools.sh)"          exports MLOPS_TEST_PROMTOOL, MLOPS_TEST_ZABBIX_AGENTD, MLOPS_TEST_ZABBIX_GET,
#                                                MLOPS_TEST_GO, MLOPS_TEST_PHP, MLOPS_TEST_DEBOOTSTRAP, MLOPS_TEST_CHROMIUM
#     eval "$(scripts/debian-tools.sh server)"   the first three, and MLOPS_TEST_ZABBIX_SERVER, the folder
#
# What it has is kept until this file or Debian's release changes. Without apt, or where no mirror answers, it exports nothing and says so:
# the tests are then skipped with the variable's name.
set -eu
what=${1:-tools}
case $what in # zabbix_get lies in the proxy's packages and in the server's
tools) packages="prometheus zabbix-agent zabbix-proxy-sqlite3 golang-go php-cli php-curl debootstrap" ;;
server) packages="prometheus zabbix-agent zabbix-server-pgsql zabbix-frontend-php php-cli php-pgsql postgresql" ;;
*) echo "debian-tools: $what? It is tools or server" >&2; exit 2 ;;
esac
browser=
if [ "$what" = tools ]; then # 96 MB to fetch
    browser=$(command -v chromium || command -v chromium-headless-shell || command -v google-chrome || true)
    [ -n "$browser" ] || packages="$packages chromium-headless-shell"
fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/mlops-build/debian-$what
root=$folder/root
wanted=$( (cat "$0" /etc/os-release 2>/dev/null; echo "$browser") | cksum)
say() { echo "debian-tools: $*" >&2; }

# Lists and archives of our own: no lock of the system's apt is touched. What the machine already has is not fetched.
apt() {
    timeout "$1" apt-get -qq --yes --no-install-recommends -o Debug::NoLocking=1 -o Dir::State::lists="$folder/lists" \
        -o Dir::Cache::archives="$folder/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User= \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=20 "$2" $3 >&2 2>"$folder/apt.log" || { tail -n 3 "$folder/apt.log" >&2; return 1; }
}

unpack() {
    for archive in "$folder"/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$archive" | tar -x -C "$root" --no-same-owner --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' \
            --exclude='./usr/share/locale/*' --exclude='./usr/share/javascript/*' --exclude=./usr/bin/prometheus
    done
    # A wrapper each: what a program links to may have been unpacked beside it.
    libraries=$root/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null || echo "$(uname -m)-linux-gnu")
    mkdir -p "$folder/bin"
    for name in promtool zabbix_agentd zabbix_get zabbix_server php8.2 php8.4; do
        for program in "$root/usr/bin/$name" "$root/usr/sbin/$name"; do
            [ -x "$program" ] || continue
            printf '#!/bin/sh\nLD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}%s" exec "%s" "$@"\n' "$libraries" "$program" >"$folder/bin/${name%8.*}"
            chmod +x "$folder/bin/${name%8.*}"
        done
    done
    if [ $what = tools ]; then
        for go in "$root"/usr/lib/go-*; do
            printf '#!/bin/sh\nGOROOT="%s" exec "%s/bin/go" "$@"\n' "$go" "$go" >"$folder/bin/go"
        done
        for curl in "$root"/usr/lib/php/*/curl.so; do sed -i "s|\"\$@\"|-d extension=\"$curl\" &|" "$folder/bin/php"; done
        if [ -x "$root/usr/sbin/debootstrap" ]; then shared=$root/usr/share/debootstrap program=$root/usr/sbin/debootstrap
        else shared=/usr/share/debootstrap program=/usr/sbin/debootstrap; fi # the machine has it
        printf '#!/bin/sh\nDEBOOTSTRAP_DIR="%s" exec "%s" "$@"\n' "$shared" "$program" >"$folder/bin/debootstrap"
        if [ -z "$browser" ]; then
            # libpulse looks for its own library in an absolute folder.
            printf '#!/bin/sh\nLD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}%s" exec "%s" "$@"\n' "$libraries:$libraries/pulseaudio" \
                "$root/usr/lib/chromium/chromium-headless-shell" >"$folder/bin/chromium"
            chmod +x "$folder/bin/chromium"
            "$folder/bin/chromium" --version --no-sandbox >&2 || return 1
        fi
        chmod +x "$folder/bin/go" "$folder/bin/debootstrap"
        "$folder/bin/go" version >&2 && "$folder/bin/php" -r 'exit(function_exists("curl_init") ? 0 : 1);' || return 1
    fi
    [ -x "$folder/bin/promtool" ] && [ -x "$folder/bin/zabbix_agentd" ] && [ -x "$folder/bin/zabbix_get" ]
}

mkdir -p "${folder%/*}"
exec 9>"$folder.lock"
flock -w 300 9 || { say "another process has been fetching for 5 minutes: tests with promtool, Zabbix, Go, PHP, debootstrap and Chromium are skipped"; exit 0; }
if [ "$(cat "$folder/.unpacked" 2>/dev/null)" != "$wanted" ]; then
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { say "no apt here, so neither promtool, Zabbix, Go, PHP, debootstrap nor Chromium: their tests are skipped"; exit 0; }
    rm -rf "$folder"
    mkdir -p "$folder/lists/partial" "$folder/archives/partial" "$root"
    if apt 60 update "" && apt 240 install "--download-only $packages" && unpack; then
        rm -rf "$folder/lists" "$folder/archives"
        echo "$wanted" >"$folder/.unpacked"
    else
        say "the packages cannot be fetched, so neither promtool, Zabbix, Go, PHP, debootstrap nor Chromium: their tests are skipped"
        rm -rf "$folder"
        exit 0
    fi
fi

echo "export MLOPS_TEST_PROMTOOL='$folder/bin/promtool'"
echo "export MLOPS_TEST_ZABBIX_AGENTD='$folder/bin/zabbix_agentd'"
echo "export MLOPS_TEST_ZABBIX_GET='$folder/bin/zabbix_get'"
if [ "$what" = tools ]; then
    echo "export MLOPS_TEST_GO='$folder/bin/go'"
    echo "export MLOPS_TEST_PHP='$folder/bin/php'"
    echo "export MLOPS_TEST_DEBOOTSTRAP='$folder/bin/debootstrap'"
    echo "export MLOPS_TEST_CHROMIUM='${browser:-$folder/bin/chromium}'"
else
    echo "export MLOPS_TEST_ZABBIX_SERVER='$folder'"
fi
