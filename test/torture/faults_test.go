//go:build linux

package torture_test

import (
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/watermill-outbox/outbox/internal/pgtest"
	"github.com/watermill-outbox/outbox/test/history"
)

// fault is one that was done.
type fault struct {
	Kind   string `json:"kind"`
	Victim string `json:"victim"` // the process, for a fault to one, or the way to a server
	Begun  int64  `json:"begun"`  // by history.Now
	// Ready is from when it is counted how long recovering takes: when what was away accepts connections again, or when it
	// has begun, where others have to take over.
	Ready int64 `json:"ready"`
}

// kind of a fault. Each does it and undoes it.
type kind struct {
	name   string
	weight int
	do     func(c *conductor, f *fault)
}

var kinds = []kind{
	{"SIGKILL of a relay", 8, func(c *conductor, f *fault) { c.kill(f, "relay") }},
	{"SIGKILL of a producer", 3, func(c *conductor, f *fault) { c.kill(f, "producer") }},
	{"SIGKILL of a consumer", 4, func(c *conductor, f *fault) { c.kill(f, "consumer") }},
	{"SIGSTOP of a relay past its lease", 6, (*conductor).freeze},
	{"SIGTERM of a relay", 8, (*conductor).dismiss},
	{"an instance comes and goes", 4, (*conductor).visit},
	{"a relay's clock jumps", 4, (*conductor).jump},
	{"pg_terminate_backend", 8, (*conductor).terminateBackends},
	{"PostgreSQL restarted, fast", 3, func(c *conductor, f *fault) { c.restart(f, pgtest.Fast) }},
	{"PostgreSQL restarted, immediate", 3, func(c *conductor, f *fault) { c.restart(f, pgtest.Crash) }},
	{"a standby promoted", 2, (*conductor).promote},
	{"the database's disk full", 3, (*conductor).fillDisk},
	{"PgBouncer restarted", 4, (*conductor).restartPooler},
	{"Kafka stopped and started", 2, func(c *conductor, f *fault) { c.restartKafka(f, "TERM") }},
	{"Kafka killed and started", 2, func(c *conductor, f *fault) { c.restartKafka(f, "KILL") }},
	{"a connection cut", 8, func(c *conductor, f *fault) { c.disturb(f, "") }},
	{"a connection slow", 6, func(c *conductor, f *fault) {
		c.disturb(f, "latency", fmt.Sprintf(`{"latency": %d, "jitter": 50}`, 50+c.random.IntN(400)))
	}},
	{"a connection narrow", 5, func(c *conductor, f *fault) {
		c.disturb(f, "bandwidth", fmt.Sprintf(`{"rate": %d}`, 5+c.random.IntN(100)))
	}},
	{"a connection that closes slowly", 3, (*conductor).closeSlowly},
	{"a connection half-open", 8, func(c *conductor, f *fault) { c.disturb(f, "timeout", `{"timeout": 0}`) }},
	{"migrations run", 2, func(c *conductor, _ *fault) { c.migrate() }},
}

// harm does one fault after another. Where it is bounded how long recovering takes, the next one waits for as long.
func (c *conductor) harm(d time.Duration) {
	all := 0
	for _, k := range kinds {
		all += k.weight
	}
	for until := time.Now().Add(d); time.Now().Before(until); {
		drawn := c.random.IntN(all)
		for _, k := range kinds {
			if drawn -= k.weight; drawn >= 0 {
				continue
			}
			if k.name == "the database's disk full" && c.disk.folder == "" {
				break
			}
			if slices.Contains(takenOver, k.name) {
				c.calm()
			}
			now := history.Now()
			f := fault{Kind: k.name, Begun: now, Ready: now}
			k.do(c, &f)
			c.t.Logf("%s %s, %.1f s", f.Kind, f.Victim, float64(history.Now()-f.Begun)/1e9)
			c.faults = append(c.faults, f)
			c.sleep(f.due())
			break
		}
		c.sleep(c.upTo(500 * time.Millisecond))
	}
}

// calm waits, though not for long, until what earlier faults have left to be published is: it would be in the time that others
// take to go on with what a relay had.
func (c *conductor) calm() {
	for until := time.Now().Add(15 * time.Second); time.Now().Before(until); c.sleep(100 * time.Millisecond) {
		waiting := 0
		if err := c.query("SELECT count(*) FROM outbox_messages", nil, &waiting); err == nil && waiting < *rate/3 {
			return
		}
	}
}

// upTo draws a time from a tenth of longest on.
func (c *conductor) upTo(longest time.Duration) time.Duration {
	return longest/10 + time.Duration(c.random.Int64N(int64(longest-longest/10)))
}

// draw returns a process of a role.
func (c *conductor) draw(f *fault, role string) *process {
	var of []*process
	for _, p := range c.processes {
		if p.role == role {
			of = append(of, p)
		}
	}
	p := of[c.random.IntN(len(of))]
	f.Victim = p.incarnation()
	return p
}

// kill kills a process, and puts another one in its place, at once or when others had time to notice.
func (c *conductor) kill(f *fault, role string) {
	p := c.draw(f, role)
	p.signal(syscall.SIGKILL)
	_ = p.wait(c.t) // it was killed
	if c.random.IntN(2) == 0 {
		time.Sleep(c.upTo(2 * ttl))
	}
	c.run(p)
}

func (c *conductor) freeze(f *fault) {
	p := c.draw(f, "relay")
	p.signal(syscall.SIGSTOP)
	time.Sleep(ttl + c.upTo(ttl))
	p.signal(syscall.SIGCONT)
}

func (c *conductor) dismiss(f *fault) {
	p := c.draw(f, "relay")
	p.signal(syscall.SIGTERM)
	if err := p.wait(c.t); err != nil {
		c.t.Logf("%s, told to end: %v", p.incarnation(), err)
	}
	f.Ready = history.Now() // it has waited for what was in flight, to a slow broker or database
	c.t.Logf("%s has ended after %v", p.incarnation(), time.Duration(f.Ready-f.Begun))
	if c.random.IntN(2) == 0 {
		time.Sleep(c.upTo(2 * ttl))
	}
	c.run(p)
}

// visit has slots given to a further instance, and taken back.
func (c *conductor) visit(f *fault) {
	c.run(c.guest)
	f.Victim = c.guest.incarnation()
	c.sleep(c.upTo(2 * ttl))
	f.Begun = history.Now()
	f.Ready = f.Begun
	c.guest.signal([]syscall.Signal{syscall.SIGTERM, syscall.SIGKILL}[c.random.IntN(2)])
	_ = c.guest.wait(c.t) // it may have been killed
}

func (c *conductor) jump(f *fault) { c.draw(f, "relay").signal(syscall.SIGUSR1) }

// terminateBackends ends half of the sessions of a process, or all.
func (c *conductor) terminateBackends(f *fault) {
	p := c.processes[c.random.IntN(len(c.processes))]
	f.Victim = p.incarnation()
	c.terminate(p, c.random.IntN(2) == 0)
}

func (c *conductor) terminate(p *process, all bool) {
	c.primary.Exec(c.t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND (pid % 2 = 0 OR $2)`,
		p.name, all)
}

func (c *conductor) restart(f *fault, mode pgtest.StopMode) {
	c.primary.Stop(c.t, mode)
	time.Sleep(c.upTo(time.Second))
	c.primary.Start(c.t)
	f.Ready = history.Now()
}

// promote ends the primary and has the standby take its place; then another standby is made.
func (c *conductor) promote(f *fault) {
	c.primary.Stop(c.t, pgtest.Crash)
	c.standby.Promote(c.t)
	c.primary.Remove(c.t)
	c.primary, c.disk, c.otherDisk = c.standby, c.otherDisk, c.disk
	c.primary.Exec(c.t, "ALTER SYSTEM RESET synchronous_standby_names")
	c.primary.Exec(c.t, "SELECT pg_reload_conf()")
	c.network.redirect(poolerWay, c.primary.Host())
	for _, p := range append(c.processes, c.guest) {
		if !p.pooled {
			c.network.redirect(p.name+toDatabase, c.primary.Host())
		}
	}
	f.Ready = history.Now()
	c.replicate()
}

func (c *conductor) fillDisk(f *fault) {
	c.disk.fill(c.t)
	time.Sleep(c.upTo(3 * time.Second))
	c.disk.empty(c.t)
	if c.query("SELECT 1", nil, new(int)) != nil { // it has ended, or is starting again
		c.primary.Stop(c.t, pgtest.Crash)
		c.primary.Start(c.t)
	}
	f.Ready = history.Now()
}

func (c *conductor) restartPooler(f *fault) {
	c.pooler.stop(c.t, []string{"TERM", "INT", "KILL"}[c.random.IntN(3)])
	time.Sleep(c.upTo(time.Second))
	c.pooler.start(c.t)
	f.Ready = history.Now()
}

func (c *conductor) restartKafka(f *fault, signal string) {
	c.kafka.Stop(c.t, signal)
	time.Sleep(c.upTo(time.Second))
	c.kafka.Start(c.t)
	f.Ready = history.Now()
}

// closeSlowly has the database end the sessions of a process whose way takes a second to tell.
func (c *conductor) closeSlowly(f *fault) {
	p := c.processes[c.random.IntN(len(c.processes))]
	f.Victim = p.incarnation()
	way := p.name + toDatabase
	c.network.poison(way, "slow_close", `{"delay": 1000}`)
	time.Sleep(c.upTo(ttl))
	c.terminate(p, true)
	time.Sleep(c.upTo(ttl))
	c.network.heal(way)
}

// disturb does something to a way to a server for a while: it cuts it, or adds a toxic.
func (c *conductor) disturb(f *fault, toxic string, attributes ...string) {
	p := c.processes[c.random.IntN(len(c.processes))]
	name, to := p.incarnation(), toDatabase
	way := p.name + to
	switch {
	case p.pooled && c.random.IntN(3) == 0:
		name, way = "pooler", poolerWay
	case p.role != "producer" && c.random.IntN(2) == 0:
		to = toKafka
		way = p.name + to
	}
	f.Victim = name + to
	longest := 2 * ttl
	if toxic == "" {
		c.network.cut(way)
		time.Sleep(c.upTo(longest))
		c.network.mend(way)
	} else {
		c.network.poison(way, toxic, attributes[0])
		time.Sleep(c.upTo(longest))
		c.network.heal(way)
	}
}
