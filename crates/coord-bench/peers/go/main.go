// The Go contenders: etcd's own clientv3/concurrency, driven by the same lines of text as the others.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

var (
	contender = flag.String("contender", "", "shared: one session for all; per-lock: one for each lock")
	endpoint  = flag.String("endpoint", "", "host:port of etcd")
	prefix    = flag.String("prefix", "", "the keys are below /PREFIX/locks/")
	shape     = flag.String("shape", "", "own, one or queued")
	tasks     = flag.Int("tasks", 1, "goroutines")
	seconds   = flag.Float64("seconds", 1, "measured time")
	commands  = bufio.NewScanner(os.Stdin)
)

func main() {
	flag.Parse()
	switch *shape {
	case "own":
		ownNames()
	case "one":
		oneName()
	case "queued":
		queued()
	default:
		panic("no such shape")
	}
}

// ready says that the load is running and waits for the start of the measured time.
func ready() {
	fmt.Println("ready")
	expect("go")
}

// report hands over the result and waits until the counters were read.
func report(result map[string]interface{}) {
	line, err := json.Marshal(result)
	must(err)
	fmt.Println(string(line))
	expect("stop")
}

func expect(command string) {
	if !commands.Scan() || commands.Text() != command {
		os.Exit(1)
	}
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// resident collects the garbage and returns the bytes that this process has in RAM.
func resident() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	must(err)
	for _, line := range strings.Split(string(status), "\n") {
		if strings.HasPrefix(line, "VmRSS:") {
			kilobytes, err := strconv.ParseInt(strings.Fields(line)[1], 10, 64)
			must(err)
			return kilobytes * 1024
		}
	}
	return 0
}
