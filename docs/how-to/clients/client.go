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

// Row holds the model's columns. A nil pointer is sent as null, which is NaN in a column of floats; encoding/json refuses NaN.
type Row struct {
	X *float64 `json:"x"`
	Y *float64 `json:"y"`
}

// Prediction is the prediction for one row. Score is nil if the service returns null, which means that the model's output was not a number.
type Prediction struct {
	Label string   `json:"label"`
	Score *float64 `json:"score"`
}

// Refused is a response with a status other than 200.
type Refused struct {
	Status    int
	Code      string // error_code, such as BAD_REQUEST
	Message   string // says which row and column
	RequestID string // the ID of this request in the service's log
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%d %s: %s (request %s)", r.Status, r.Code, r.Message, r.RequestID)
}

// Client sends requests to one service. Use one Client for the whole process: it keeps connections, and goroutines may share it.
type Client struct {
	URL      string
	Attempts int // at least 1
	http     *http.Client
}

// NewClient returns a client. timeout limits each attempt; concurrent is the number of requests that you send at the same time.
func NewClient(url string, timeout time.Duration, concurrent int) *Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns = concurrent
	transport.MaxIdleConnsPerHost = concurrent   // the default is 2; all other requests would open new connections
	transport.IdleConnTimeout = 60 * time.Second // the service closes idle connections after 75 s
	return &Client{URL: url, Attempts: 3, http: &http.Client{Timeout: timeout, Transport: transport}}
}

// Predict sends all rows in one request. It retries on 429, 503, 504 and lost connections, which is safe because a prediction changes nothing.
// ctx limits the total time, including the waiting. The error is a *Refused if the service responded.
func (c *Client) Predict(ctx context.Context, rows []Row) ([]Prediction, error) {
	body, err := json.Marshal(map[string][]Row{"dataframe_records": rows})
	if err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		predictions, wait, err := c.attempt(ctx, body)
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

// attempt also returns how long to wait before a retry, or 0 if a retry does not help.
func (c *Client) attempt(ctx context.Context, body []byte) ([]Prediction, time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL+"/invocations", bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header["X-Idempotency-Key"] = nil // not sent; makes net/http repeat a POST if a kept connection was closed
	response, err := c.http.Do(request)
	if err != nil {
		return nil, time.Second, err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body) // to the end, otherwise the connection cannot be reused
	if err != nil {
		return nil, time.Second, err
	}
	if response.StatusCode != http.StatusOK {
		refused := &Refused{Status: response.StatusCode, RequestID: response.Header.Get("X-Request-Id")}
		var document struct {
			Code    string `json:"error_code"`
			Message string `json:"message"`
		}
		if json.Unmarshal(content, &document) == nil {
			refused.Code, refused.Message = document.Code, document.Message
		} else {
			refused.Message = string(content) // 415, and errors of a proxy, are not JSON
		}
		return nil, retryAfter(response), refused
	}
	var document struct {
		Predictions []Prediction `json:"predictions"`
	}
	if err := json.Unmarshal(content, &document); err != nil {
		return nil, 0, err
	}
	return document.Predictions, 0, nil
}

func retryAfter(response *http.Response) time.Duration {
	switch response.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
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
	// Each list on stdin is one request; all use the same connection.
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
