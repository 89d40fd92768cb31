// Command client asks a service for predictions: rows as JSON on stdin, predictions as JSON on stdout.
//
//	echo '[{"x": 1.0, "y": 0.5}, {"x": null, "y": 0.25}]' | go run client.go http://127.0.0.1:8080
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Row holds the model's columns. A nil pointer is sent as null, which is NaN in a column of floats: encoding/json refuses NaN itself.
type Row struct {
	X *float64 `json:"x"`
	Y *float64 `json:"y"`
}

// Prediction is the answer for one row. Score is nil where the service answers null: the model's answer was not a number.
type Prediction struct {
	Label string   `json:"label"`
	Score *float64 `json:"score"`
}

// Refused is an answer other than 200.
type Refused struct {
	Status    int
	Code      string // error_code, such as BAD_REQUEST
	Message   string // says which row and column
	RequestID string // by which the service's log has this request
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%d %s: %s (request %s)", r.Status, r.Code, r.Message, r.RequestID)
}

// Client asks one service. Make one for the whole process: it keeps connections, and goroutines may share it.
type Client struct {
	URL      string
	Attempts int // at least 1
	http     *http.Client
}

// NewClient limits each attempt to timeout. concurrent: how many requests you send at once, so that each finds a connection.
func NewClient(url string, timeout time.Duration, concurrent int) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns = concurrent
	transport.MaxIdleConnsPerHost = concurrent  // the default keeps 2, and connects anew for all others
	transport.IdleConnTimeout = 4 * time.Second // the service closes idle connections after 5 s
	return &Client{URL: url, Attempts: 3, http: &http.Client{Timeout: timeout, Transport: transport}}
}

// Predict asks for all rows in one request. It asks again on 429, 503, 504 and lost connections, since predicting twice does no harm;
// ctx bounds everything, the waiting too. The error is a *Refused where the service answered.
func (c *Client) Predict(ctx context.Context, rows []Row) ([]Prediction, error) {
	body, err := json.Marshal(map[string][]Row{"dataframe_records": rows})
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		predictions, wait, err := c.once(ctx, body)
		if err == nil || wait == 0 || attempt >= c.Attempts {
			return predictions, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// once returns how long to wait before asking again, 0 where that does not help.
func (c *Client) once(ctx context.Context, body []byte) ([]Prediction, time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/invocations", bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header["X-Idempotency-Key"] = nil // not sent: it lets net/http repeat a POST when a kept connection was closed meanwhile
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, time.Second, err
	}
	defer answer.Body.Close()
	read, err := io.ReadAll(answer.Body) // to the end, or the connection cannot be kept
	if err != nil {
		return nil, time.Second, err
	}
	if answer.StatusCode != http.StatusOK {
		refused := &Refused{Status: answer.StatusCode, RequestID: answer.Header.Get("X-Request-Id")}
		var said struct {
			Code    string `json:"error_code"`
			Message string `json:"message"`
		}
		if json.Unmarshal(read, &said) == nil {
			refused.Code, refused.Message = said.Code, said.Message
		} else {
			refused.Message = string(read) // 415 is a plain sentence, and a proxy in between answers as it likes
		}
		return nil, retryAfter(answer), refused
	}
	var document struct {
		Predictions []Prediction `json:"predictions"`
	}
	if err := json.Unmarshal(read, &document); err != nil {
		return nil, 0, err
	}
	return document.Predictions, 0, nil
}

func retryAfter(answer *http.Response) time.Duration {
	switch answer.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
		if err != nil || seconds < 1 || seconds > 60 {
			seconds = 1
		}
		return time.Duration(seconds) * time.Second
	}
	return 0
}

func main() {
	client := NewClient(os.Args[1], 5*time.Second, 16)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// Several lists may follow each other; each is one request, on the same connection.
	for input := json.NewDecoder(os.Stdin); ; {
		var rows []Row
		if err := input.Decode(&rows); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		predictions, err := client.Predict(ctx, rows)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		json.NewEncoder(os.Stdout).Encode(predictions)
	}
}
