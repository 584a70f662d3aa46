#!/usr/bin/env bash
# Makes what a release has, in the folder target/package: a tar archive with the programs, man pages, completions,
# the unit for systemd, licences, README and CHANGELOG; on Debian and Ubuntu a package of the same; and their SHA-256 sums.
#
# usage: package.sh [--static | --try]
#   --static   programs that do not even need the C library, for which Rust's musl target has to be installed
#   --try      then also installs both on a bare Debian 12 (as root, with debootstrap) and uses them there
# Exit code: 69 if something is missing; 70 if the build fails, or a program needs more than the C library.
set -euo pipefail
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck source=scripts/common.sh
. "$here/common.sh"

programs=(rpc_client rpc_server)

# Of the symbols' versions, the newest is the oldest C library that has them all.
c_library() {
    objdump -T "${programs[@]}" | sed -n 's/.*(GLIBC_\([0-9.]*\)).*/\1/p' | sort -Vu | tail -1
}

# libgcc_s comes with the C library: Debian's libc6 depends on it.
needs_only_the_c_library() {
    local others
    others=$(ldd "${programs[@]}" | sed -n 's/^[[:space:]]*\([^ ]*\) .*/\1/p' |
        grep -Ev '^(linux-vdso|libc|libm|libgcc_s|.*/ld-linux[^/]*)\.so|^statically$' || true)
    [ -z "$others" ] || fail 70 "the programs need more than the C library: $others"
}

archive() {
    local name=$1 folder
    folder=$(temporary_folder package)
    # shellcheck disable=SC2064  # this folder
    trap "rm -rf '$folder'" EXIT
    mkdir -p "$folder/$name/bin" "$folder/$name/share"
    (cd "$release" && cp "${programs[@]}" "$folder/$name/bin")
    cp -R share/. "$folder/$name/share"
    cp README.md CHANGELOG.md LICENSE-* "$folder/$name"
    echo "$2" >"$folder/$name/REQUIREMENTS"
    # The same commit makes the same archive.
    tar -C "$folder" -cf - --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$(git log -1 --format=%ct)" "$name" | gzip -n >"$package/$name.tar.gz"
}

debian_package() {
    have dpkg-shlibdeps || install_packages dpkg-shlibdeps dpkg-dev
    # shellcheck disable=SC2031
    have cargo-deb || PATH=$PATH:$target/tools/bin
    have cargo-deb || { say 'installing cargo-deb' && cargo install --quiet --locked --root "$target/tools" cargo-deb; } ||
        fail 69 'could not install cargo-deb, see above'
    cargo deb --quiet --locked --no-build --output "$package"
}

make() {
    local version triple requirements='Linux, nothing else'
    version=$(cargo pkgid --locked) && version=${version##*[#@]}
    triple=$(rustc -vV | sed -n 's/^host: //p') release=$target/release
    package=$target/package
    if [ "$1" = --static ]; then
        triple=${triple%%-*}-unknown-linux-musl release=$target/$triple/release
        [ -d "$(rustc --print target-libdir --target "$triple")" ] ||
            fail 69 "Rust's target $triple is not installed; type: rustup target add $triple"
        set -- --static --target "$triple"
    fi
    shift
    say 'building the programs'
    cargo build --release --locked "$@" || fail 70 'the build failed, see above'
    rm -rf "$package" && mkdir -p "$package"
    (cd "$release" && needs_only_the_c_library)
    if [ $# = 0 ]; then requirements="Linux with glibc $(cd "$release" && c_library) or newer"; fi
    archive "fib-rpc-$version-$triple" "$requirements"
    if [ $# = 0 ] && have dpkg; then debian_package; fi
    (cd "$package" && shopt -s nullglob && sha256sum -- *.tar.gz *.deb >SHA256SUMS)
    say "made in $package, for $requirements:"
    ls "$package"
}

# in_root COMMAND…: in the bare Debian, without anything of the environment.
in_root() {
    chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin AMQP_URL="$AMQPS_URL" "$@"
}

uses_the_programs() {
    local name
    for name in "${programs[@]}"; do
        in_root "$name" --version
        in_root man -w "$name"
        # shellcheck disable=SC2016  # the inner shell's
        in_root bash -c '. /usr/share/bash-completion/bash_completion && __load_completion "$0" && complete -p "$0"' "$name"
    done
    # shellcheck disable=SC2016  # the inner shell's
    in_root bash -c 'rpc_server -q & rpc_client -q --wait fib 30 && kill $! && wait $!'
}

# With the broker that broker.sh has started, over TLS.
try() {
    root=$(temporary_folder root)
    trap 'rm -rf "$root"' EXIT
    package=$target/package
    say 'making a bare Debian 12'
    debootstrap --variant=minbase --include=man-db,bash-completion bookworm "$root" >"$root.log" 2>&1 ||
        { cat "$root.log" >&2 && fail 69 'debootstrap failed, see above'; }
    rm -f "$root.log"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
    mkdir -p "$root$TLS_DIR" && cp "$TLS_DIR/ca.pem" "$root$TLS_DIR"
    say 'the archive'
    tar -C "$root/usr/local" --strip-components=1 -xzf "$package"/*.tar.gz
    uses_the_programs
    rm -rf "$root"/usr/local/{bin,share}
    say 'the Debian package'
    cp "$package"/*.deb "$root/package.deb"
    in_root dpkg -i /package.deb
    uses_the_programs
    say 'both work'
}

enter_root "$here"
case ${1-} in
    -h | --help) show_help "$here/package.sh" ;;
    --with-broker) try ;;
    '' | --static)
        need_build
        make "${1-}"
        ;;
    --try)
        is_root || fail 69 '--try has to be root, for debootstrap and chroot'
        need_build
        make ''
        need_command debootstrap
        unset BROKER_DIR AMQP_URL
        exec "$here/broker.sh" run --tls -- "$here/package.sh" --with-broker
        ;;
    *) fail 64 "unknown word: $1; usage: package.sh [--static | --try]" ;;
esac
