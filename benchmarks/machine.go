package main

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/host"
	"github.com/shirou/gopsutil/v4/mem"

	"github.com/watermill-outbox/outbox/benchmarks/result"
)

// describe puts into the result where it was made, and with what.
func (b *bench) describe(ctx context.Context) error {
	m := result.Machine{Cores: runtime.NumCPU()}
	if infos, err := cpu.InfoWithContext(ctx); err == nil && len(infos) > 0 { // what a system does not tell is left out
		m.CPU = infos[0].ModelName
	}
	if memory, err := mem.VirtualMemoryWithContext(ctx); err == nil {
		m.Memory = memory.Total
	}
	if info, err := host.InfoWithContext(ctx); err == nil {
		m.OS = strings.Join([]string{info.Platform, info.PlatformVersion, info.OS, info.KernelVersion}, " ")
	}
	b.result.Machine = m
	versions := map[string]string{"go": runtime.Version(), "this project": revision(ctx)}
	var version, settings string
	err := b.env.Pool.QueryRow(ctx, `
		SELECT current_setting('server_version'),
		       string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name)
		FROM pg_settings
		WHERE name IN ('fsync', 'synchronous_commit', 'shared_buffers', 'wal_level', 'max_wal_size')`).Scan(&version, &settings)
	if err != nil {
		return err
	}
	versions["postgresql"], versions["postgresql_settings"] = version, settings
	if versions["kafka"], err = b.topic.Version(ctx); err != nil {
		return fmt.Errorf("asking Kafka for its version: %w", err)
	}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, module := range build.Deps {
			if slices.Contains(modules, module.Path) {
				versions[module.Path] = module.Version
			}
		}
	}
	b.result.Versions = versions
	return nil
}

// revision is the commit of the working folder, with what git says of changes.
func revision(ctx context.Context) string {
	text, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// modules whose versions matter to who compares.
var modules = []string{
	"github.com/IBM/sarama", "github.com/ThreeDotsLabs/watermill", "github.com/ThreeDotsLabs/watermill-kafka/v3",
	"github.com/ThreeDotsLabs/watermill-sql/v3", "github.com/ThreeDotsLabs/watermill-sql/v4", "github.com/jackc/pgx/v5",
	"github.com/mattn/go-sqlite3", "github.com/riverqueue/river", "github.com/twmb/franz-go",
}
