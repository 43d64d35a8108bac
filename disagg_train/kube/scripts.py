"""The shell scripts of the head's pod: they hand Kubernetes' wish to stop to the driver, once.

Ray's own way to stop a job signals every process of it; so does the deletion of a RayJob, and
then its pods are deleted too. A second signal ends the trainer at once, without a checkpoint.
So the first script notes a signal that came by Ray, and the second sends one only where none did.
"""

FOLDER = "/etc/disagg-train"
"""Where the head's pod has the scripts and the job file."""

RUN = """\
# Run the driver, which the arguments are; say where it is, and note a signal that Ray sent.
state=${DISAGG_TRAIN_STATE:-/tmp/disagg-train}
mkdir -p "$state"
rm -f "$state/asked"
trap 'touch "$state/asked"' TERM
"$@" &
echo $! > "$state/pid"
wait $!
status=$?
while kill -0 "$(cat "$state/pid")" 2> /dev/null; do
  wait "$(cat "$state/pid")"
  status=$?
done
rm -f "$state/pid"
exit $status
"""

STOP = """\
# Before the pod ends: have the driver save and end, and wait for that. Kubernetes has a deadline.
state=${DISAGG_TRAIN_STATE:-/tmp/disagg-train}
pid=$(cat "$state/pid" 2> /dev/null) || exit 0
[ -e "$state/asked" ] || kill -TERM "$pid" 2> /dev/null
while kill -0 "$pid" 2> /dev/null; do sleep 1; done
"""
