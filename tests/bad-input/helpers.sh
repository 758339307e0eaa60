# How the table makes its files: each makes bad.o in the current directory, where good.c and good.o lie.

# edit SCRIPT [OPTION...]: the good source changed by sed; a change that changes nothing is an error
edit() {
	script=$1; shift
	sed "$script" good.c >bad.c
	! cmp -s good.c bad.c || { echo "nothing changed: $script" >&2; return 1; }
	cc -c -O2 -w -I"$SDK" "$@" bad.c -o bad.o
}
# compile OPTION...: the good source compiled in another way
compile() { ${CC:-cc} -c -O2 -I"$SDK" good.c -o bad.o "$@"; }
# put OFFSET BYTES: the good object with bytes (as printf writes them) at an offset
put() { cp good.o bad.o && printf "$2" | dd of=bad.o bs=1 seek=$(($1)) conv=notrunc status=none; }
# cut_to SIZE: the beginning of the good object
cut_to() { head -c "$1" good.o >bad.o; }
# section_field NAME FIELD: offset in the file of a field of a section's header (offset in the header)
section_field() {
	n=$(readelf -SW good.o | sed -n "s/^ *\[ *\([0-9]*\)\] $1 .*/\1/p" | head -1)
	shoff=$(readelf -hW good.o | sed -n 's/ *Start of section headers: *\([0-9]*\).*/\1/p')
	echo $((shoff + n * 64 + $2))
}
# section_data NAME: offset in the file of a section's contents
section_data() {
	echo $((0x$(readelf -SW good.o | sed -n "s/^ *\[ *[0-9]*\] $1  *[A-Z]* *[0-9a-f]* \([0-9a-f]*\) .*/\1/p" | head -1)))
}
