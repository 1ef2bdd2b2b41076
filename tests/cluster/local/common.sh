# What `cluster` and `images` share: where things are kept. Sourced, not run.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CHECKOUT=$(cd "$HERE/../../.." && pwd)
# The state of this checkout's cluster.
DIR=$(realpath -m "${HONE_CLUSTER_DIR:-$CHECKOUT/build/cluster}")
# What outlives a checkout: binaries, image layers, the node's unpacked images.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/hone
REGISTRY=127.0.0.1:5000

PACKAGES="runc containernetworking-plugins iptables iproute2 conntrack openssl buildah debootstrap"

fail() { echo "$(basename "$0"): $*" >&2; exit 1; }

packages() { # install the Debian packages that this machine lacks
  local missing=() name
  for name in $PACKAGES; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  echo "installing ${missing[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
}

[[ $(uname -s) == Linux ]] || fail "needs Linux, this is $(uname -s)"
[[ $EUID == 0 ]] || fail "needs root, for namespaces, mounts and iptables"
command -v apt-get >/dev/null || fail "needs Debian's apt-get"
