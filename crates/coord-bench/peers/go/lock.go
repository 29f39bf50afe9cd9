package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

const ttl = 30

var background = context.Background()

func dial() *client {
	made, err := newClient(config{
		Endpoints:   []string{*endpoint},
		DialTimeout: 5 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()},
	})
	must(err)
	return made
}

func newSession(on *client) *session {
	made, err := sessionOn(on, withLifetime(ttl))
	must(err)
	return made
}

func key(name string) string { return fmt.Sprintf("/%s/locks/%s", *prefix, name) }

// ownNames: each goroutine locks and unlocks a name of its own.
func ownNames() {
	on := dial()
	shared := newSession(on)
	pair := func(name string) {
		of := shared
		if *contender == "per-lock" {
			of = newSession(on)
		}
		turn := newMutex(of, name)
		must(turn.Lock(background))
		must(turn.Unlock(background))
		if *contender == "per-lock" {
			must(of.Close())
		}
	}
	pairs := func(duration time.Duration) []int64 {
		var all []int64
		var guard sync.Mutex
		var running sync.WaitGroup
		end := time.Now().Add(duration)
		for task := 0; task < *tasks; task++ {
			running.Add(1)
			go func(name string) {
				defer running.Done()
				var latencies []int64
				for time.Now().Before(end) {
					start := time.Now()
					pair(name)
					latencies = append(latencies, time.Since(start).Microseconds())
				}
				guard.Lock()
				all = append(all, latencies...)
				guard.Unlock()
			}(key(fmt.Sprintf("own-%d", task)))
		}
		running.Wait()
		return all
	}
	measured := time.Duration(*seconds * float64(time.Second))
	pairs(measured / 5)
	ready()
	start := time.Now()
	latencies := pairs(measured)
	report(map[string]interface{}{"seconds": time.Since(start).Seconds(), "latencies_us": latencies})
	must(shared.Close())
}

// sessions: one for each goroutine, since two mutexes of one session on one name are the same to clientv3.
func sessions(on *client, count int) []*session {
	all := make([]*session, count)
	each(count, func(i int) { all[i] = newSession(on) })
	return all
}

func closeAll(all []*session) {
	each(len(all), func(i int) { _ = all[i].Close() })
}

// each runs do for 0 to count - 1, 64 at a time.
func each(count int, do func(int)) {
	var running sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := 0; i < count; i++ {
		running.Add(1)
		slots <- struct{}{}
		go func(i int) {
			defer running.Done()
			do(i)
			<-slots
		}(i)
	}
	running.Wait()
}

// oneName: all goroutines take turns on one name.
func oneName() {
	all := sessions(dial(), *tasks)
	var guard sync.Mutex
	got := []int64{}
	var count int64
	var measuring int32
	var stopped int32
	for _, own := range all {
		go func(turn *mutex) {
			for {
				err := turn.Lock(background)
				atomic.AddInt64(&count, 1)
				if err == nil && atomic.LoadInt32(&measuring) == 1 {
					guard.Lock()
					got = append(got, time.Now().UnixNano()/1000)
					guard.Unlock()
				}
				if err == nil {
					err = turn.Unlock(background)
				}
				if atomic.LoadInt32(&stopped) == 1 {
					return
				}
				must(err)
			}
		}(newMutex(own, key("one")))
	}
	start := time.Now()
	warm := func() bool {
		return atomic.LoadInt64(&count) >= int64(*tasks) || time.Since(start) > 20*time.Second
	}
	for time.Since(start) < time.Second || !warm() {
		time.Sleep(10 * time.Millisecond)
	}
	ready()
	start = time.Now()
	atomic.StoreInt32(&measuring, 1)
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	atomic.StoreInt32(&measuring, 0)
	passed := time.Since(start).Seconds()
	guard.Lock()
	turns := got
	guard.Unlock()
	report(map[string]interface{}{"seconds": passed, "turns_us": turns})
	atomic.StoreInt32(&stopped, 1)
	closeAll(all)
}

// queued: all goroutines stand behind a lock that is held all the time.
func queued() {
	on := dial()
	holder := newSession(on)
	must(newMutex(holder, key("one")).Lock(background))
	all := sessions(on, *tasks)
	time.Sleep(500 * time.Millisecond)
	before := resident()
	for _, own := range all {
		go func(turn *mutex) { _ = turn.Lock(background) }(newMutex(own, key("one")))
	}
	ready()
	time.Sleep(time.Second)
	after := resident()
	report(map[string]interface{}{"seconds": 1, "bytes": []int64{before, after}})
	closeAll(append(all, holder))
}
