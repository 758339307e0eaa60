# killed-at-writes.sh COMMAND STEP BACK...: kills `ugraft COMMAND` before the first of its writes into the process $PID, then before the one STEP
# writes later, and so on, until it comes through. After each death the command is given again, which must do what is left; the
# commands BACK undo it for the next round.
command=$1 step=$2
shift 2
n=1
while test $n -lt 300 && ! strace -f -qq -o /dev/null -e trace=pwrite64 -e inject=pwrite64:signal=SIGKILL:when=$n ugraft $command --pid $PID --quiet >said 2>&1; do
	n=$((n + step))
	ugraft $command --pid $PID --quiet >said 2>&1
	for back; do ugraft $back --pid $PID --quiet >said 2>&1 || cat said; done
done
test $n -gt 5 || echo "only $n writes"
test $n -lt 300 || echo "no end of writes"
