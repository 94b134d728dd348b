# What a device tells about itself, without Python: one fact a line, its fields separated by tabs, the first one its name.
# Stands alone on the device, runs in any POSIX shell. Usage: sh probe.sh NAME=PLACE... - programs to look for; PLACE may be empty.

fact() {
    line=$1
    shift
    for field in "$@"; do
        line="$line	$field"
    done
    printf '%s\n' "$line" | tr -d '\000\r'
}

first_line() {
    [ -r "$1" ] && head -n 1 "$1" 2>/dev/null | tr -d '\000\r'
}

fact os "$(uname -srm)"
if command -v getprop >/dev/null 2>&1; then
    fact model "$(getprop ro.product.model)"
    fact system "Android $(getprop ro.build.version.release)"
elif [ -r /proc/device-tree/model ]; then
    fact model "$(first_line /proc/device-tree/model)"
else
    fact model "$(first_line /sys/class/dmi/id/product_name)"
fi
fact cpu "$(sed -n 's/^\(model name\|Hardware\)[^:]*: *//p' /proc/cpuinfo 2>/dev/null | head -n 1)"
fact memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo 2>/dev/null)"
fact free_kb "$(df -kP . 2>/dev/null | sed -n '2s/^.* \([0-9][0-9]*\)  *[0-9][0-9]*%.*$/\1/p')"
fact boot_id "$(first_line /proc/sys/kernel/random/boot_id)"
for folder in /sys/devices/system/cpu/cpu[0-9]*; do
    [ -d "$folder" ] || continue
    # A core that is switched off, or of a system without cpufreq, has no such files.
    fact core "${folder##*/cpu}" "$(first_line "$folder/cpufreq/cpuinfo_max_freq")" "$(first_line "$folder/cpufreq/scaling_governor")"
done
for zone in /sys/class/thermal/thermal_zone[0-9]*; do
    [ -r "$zone/temp" ] && fact temperature "$zone/temp" "$(first_line "$zone/type")" "$(first_line "$zone/temp")"
done
for wanted in "$@"; do
    name=${wanted%%=*}
    place=${wanted#*=}
    for path in "$place" "$(command -v "$name" 2>/dev/null)" "/data/local/tmp/$name" "/usr/src/tensorrt/bin/$name" \
        "/opt/tensorrt/bin/$name"; do
        if [ -n "$path" ] && [ -f "$path" ] && [ -x "$path" ]; then
            fact tool "$name" "$path"
            break
        fi
    done
done
fact end
