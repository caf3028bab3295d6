#!/bin/sh
# Installs what of Debian's packages `make test-cluster` lacks. Without root it does nothing: the tests skip then.
set -eu
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi

missing=
for package in iproute2 nftables postgresql wget openssl chromium chromium-driver; do
  dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q ' installed$' ||
    missing="$missing $package"
done
if [ -z "$missing" ]; then exit 0; fi

# PostgreSQL's package would start a server of its own.
quiet=/etc/postgresql-common/createcluster.d/tune_fusion.conf
mkdir -p "${quiet%/*}"
trap 'rm -f "$quiet"' EXIT
echo 'create_main_cluster = false' >"$quiet"
apt-get update -qq
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
