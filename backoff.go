package outbox

import (
	"math/rand/v2"
	"time"
)

// RetryDelay draws how long a message waits after its failed attempt number retries (1 for the first): anything from
// zero up to RetryBackoff doubled with each further attempt, at most MaxRetryBackoff. That is exponential backoff with
// full jitter, which spreads retries better than jitter around a fixed value:
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
func (c Config) RetryDelay(retries int) time.Duration {
	return fullJitter(c.RetryBackoff, c.MaxRetryBackoff, retries)
}

func fullJitter(base, limit time.Duration, attempt int) time.Duration {
	ceiling := base
	for i := 1; i < attempt && ceiling < limit; i++ {
		ceiling *= 2
	}
	ceiling = min(ceiling, limit)
	if ceiling <= 0 {
		return 0
	}
	return rand.N(ceiling) //nolint:gosec // spreads load, guards nothing
}
